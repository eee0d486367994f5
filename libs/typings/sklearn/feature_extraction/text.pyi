# What we use of it: without annotations of its own, inferring its types costs pyright three seconds of every check.
from collections.abc import Iterable
from typing import Literal

# scipy.sparse.csr_matrix, whose sources cost as much.
class Features: ...

class TfidfVectorizer:
    def __init__(
        self,
        *,
        sublinear_tf: bool = ...,
        min_df: float = ...,
        max_features: int | None = ...,
        ngram_range: tuple[int, int] = ...,
        analyzer: Literal["word", "char", "char_wb"] = ...,
    ) -> None: ...
    def fit_transform(self, raw_documents: Iterable[str]) -> Features: ...
    def transform(self, raw_documents: Iterable[str]) -> Features: ...
