"""Near duplicates among texts of any language: runs of letters, MinHash to find candidates, Jaccard to decide."""

from datasketch import MinHash, MinHashLSH

from training.synthesis.answers import normalised

# Letters a run: words would need a segmenter for Chinese, Japanese, Thai.
RUN = 4
PERMUTATIONS = 128


class NearDuplicates:
    """What came so far. Order matters: of two alike the first one stays."""

    def __init__(self, threshold: float) -> None:
        """threshold: Jaccard similarity of the sets of runs from which two texts are one."""
        self._threshold = threshold
        # Candidates from a little lower, for MinHash only estimates.
        self._index = MinHashLSH(threshold=max(0.1, threshold - 0.1), num_perm=PERMUTATIONS)
        self._texts: list[str] = []

    def is_new(self, text: str) -> bool:
        """Whether nothing like it came before; a new one is remembered."""
        known = normalised(text)
        runs = runs_of(known)
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([run.encode("utf-8") for run in runs])
        for place in self._index.query(sketch):
            if jaccard(runs, runs_of(self._texts[place])) >= self._threshold:
                return False
        self._index.insert(len(self._texts), sketch)
        self._texts.append(known)
        return True


def runs_of(text: str) -> set[str]:
    """All runs of RUN letters; of a shorter text the whole."""
    return {text[start : start + RUN] for start in range(max(1, len(text) - RUN + 1))}


def jaccard(left: set[str], right: set[str]) -> float:
    """Shared among all."""
    return len(left & right) / len(left | right)
