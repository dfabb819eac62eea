"""Similarity of texts by their character n-grams: texts that share a brand, a series or a name are similar.

The vector of a language model says what a text is about; it keeps little of the name of a brand or a series. Groups of three to
five characters, weighted by tf-idf, keep just that, and they don't mind endings, cut words or the language.
"""

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

SHARE = 0.5  # weight beside the sharpened cosine of text vectors; docs/ledger.md


class CharNgrams:
    """Cosine of the tf-idf vectors of character n-grams, within words.

    Args:
        texts: of the N items, "" where there is none: similar to nothing.
    """

    def __init__(self, texts: list[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # here: scikit-learn takes a second to import

        ngrams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2, sublinear_tf=True, dtype=np.float32)
        try:
            self.vectors = ngrams.fit_transform(texts).tocsr()  # (N, n-grams) sparse, rows of unit length or empty
            self._learned: TfidfVectorizer | None = ngrams
        except ValueError:  # scikit-learn's word for: no two texts share an n-gram
            self.vectors = sp.csr_matrix((len(texts), 1), dtype=np.float32)  # (N, 1)
            self._learned = None

    def more(self, texts: list[str]) -> sp.csr_matrix:
        """Vectors of texts that came later, (texts, n-grams) sparse: n-grams count as they did in the texts before."""
        if self._learned is None or not texts:
            return sp.csr_matrix((len(texts), self.vectors.shape[1]), dtype=np.float32)
        return self._learned.transform(texts).tocsr()

    def similar(self, items: Tensor) -> Tensor:
        """Similarity, 0 to 1, of these items (b,) int64 with every item: (b, N) float32."""
        return torch.from_numpy((self.vectors[items.numpy()] @ self.vectors.T).toarray())  # (b, N)

    def score(self, items: Tensor, weight: Tensor) -> Tensor:
        """Similarity summed over the items of a row: (B, n) int64 and (B, n) float32 -> (B, N) float32."""
        n_rows, n = items.shape
        row = np.repeat(np.arange(n_rows), n)  # (B * n,)
        shape = (n_rows, self.vectors.shape[0])
        profile = sp.csr_matrix((weight.flatten().numpy(), (row, items.flatten().numpy())), shape)  # (B, N)
        return torch.from_numpy((profile @ self.vectors @ self.vectors.T).toarray())  # (B, N)
