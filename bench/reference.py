"""nnU-Net's own predictor, called from Python in one process, to time whole processes.

python -m bench.reference MODEL_FOLDER IMAGE OUTPUT [--device cpu|cuda] [--folds 0 1 ...] [--mirroring]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def main() -> None:
    """Predict one image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--mirroring", action="store_true")
    options = parser.parse_args()
    predictor = nnUNetPredictor(use_mirroring=options.mirroring, device=torch.device(options.device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(options.model), tuple(options.folds))
    predictor.predict_from_files_sequential([[str(options.image)]], [str(options.output)])


if __name__ == "__main__":
    main()
