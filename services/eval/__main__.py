"""python -m services.eval [--role rpc|jobs|all]"""

from libs.common.service import run
from services.eval.app import DEFINITION

if __name__ == "__main__":
    run(DEFINITION)
