"""Entry point of Task 2's container: reads /input, writes /output; see --help for other folders."""

import sys
from pathlib import Path

from pantherseg.grand_challenge import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).with_name("recipe.toml")))
