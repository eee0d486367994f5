# The real one imports each of its hundreds of models for type checkers, which takes pyright twelve seconds.
from typing import Any

def __getattr__(name: str) -> Any: ...
