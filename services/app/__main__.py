"""python -m services.app [--role rpc|jobs|all]"""

from libs.common.service import run
from services.app.app import DEFINITION

if __name__ == "__main__":
    run(DEFINITION)
