"""`python -m shira_diffusion`, installed as `shira`."""

import sys

from shira_diffusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
