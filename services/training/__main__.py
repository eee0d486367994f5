"""python -m services.training [--role rpc|jobs|all]"""

from libs.common.service import run
from services.training.app import DEFINITION

if __name__ == "__main__":
    run(DEFINITION)
