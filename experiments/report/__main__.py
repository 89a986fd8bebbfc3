"""python -m experiments.report WORKDIR [WORKDIR ...]"""

import sys

from experiments.report import page

if __name__ == "__main__":
    sys.exit(page.main())
