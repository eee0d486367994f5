# What we use of it; see feature_extraction/text.pyi.
from collections.abc import Sequence

from numpy import ndarray
from sklearn.feature_extraction.text import Features

class SGDClassifier:
    def __init__(
        self,
        *,
        loss: str = ...,
        alpha: float = ...,
        max_iter: int = ...,
        tol: float | None = ...,
        random_state: int | None = ...,
    ) -> None: ...
    def fit(self, X: Features, y: Sequence[str]) -> SGDClassifier: ...  # noqa: N803 - their name
    def predict(self, X: Features) -> ndarray: ...  # noqa: N803 - their name
