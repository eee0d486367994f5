"""python -m services.dataset [--role rpc|jobs|all]"""

from libs.common.service import run
from services.dataset.app import DEFINITION

if __name__ == "__main__":
    run(DEFINITION)
