"""Likeness of texts by their letters: what shares a brand, a series or a name is alike, whatever it is about.

A language model's vector says what a text is about; of the name of a brand or a series, little is left in it. Groups of three
to five letters, weighed by tf-idf, say just that, and they don't mind endings, cut words or languages.
"""

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

SHARE = 0.5  # weight beside the sharpened cosine of text vectors; docs/ledger.md


class Letters:
    """Cosine of the tf-idf vectors of groups of letters, within words.

    Args:
        texts: of the N items, "" where there is none: alike to nothing.
    """

    def __init__(self, texts: list[str]) -> None:
        groups = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2, sublinear_tf=True, dtype=np.float32)
        try:
            self.vectors = groups.fit_transform(texts).tocsr()  # (N, groups) sparse, rows of unit length or empty
        except ValueError:  # scikit-learn's word for: no two texts share a group
            self.vectors = sp.csr_matrix((len(texts), 1), dtype=np.float32)  # (N, 1)

    def similar(self, items: Tensor) -> Tensor:
        """Likeness, 0 to 1, of these items (b,) int64 with every item: (b, N) float32."""
        return torch.from_numpy((self.vectors[items.numpy()] @ self.vectors.T).toarray())  # (b, N)

    def score(self, items: Tensor, weight: Tensor) -> Tensor:
        """Likeness summed over the items of a row: (B, n) int64 and (B, n) float32 -> (B, N) float32."""
        n_rows, n = items.shape
        shape = (n_rows, self.vectors.shape[0])
        taste = sp.csr_matrix(
            (weight.flatten().numpy(), (np.repeat(np.arange(n_rows), n), items.flatten().numpy())), shape
        )
        return torch.from_numpy((taste @ self.vectors @ self.vectors.T).toarray())  # (B, N)
