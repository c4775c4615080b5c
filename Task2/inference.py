"""Entry point of Task 2's container: /input -> /output, with --input, --output and --model elsewhere."""

import sys
from pathlib import Path

from pantherseg.grand_challenge import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).with_name("recipe.toml")))
