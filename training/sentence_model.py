"""The transformer of a checkpoint with pooling and normalisation on top: token ids in, sentence vectors out.

It is what export traces and what evaluation measures, and it pools with the functions that the gateway uses.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.tokens import TokenBatch
from training.errors import CheckpointError
from training.lexical_path import LexicalPath, load_lexical_path
from training.static_path import StaticPath, load_static_path


class SentenceModel(torch.nn.Module):
    """The encoder of a checkpoint, pooled to one vector of length one; beside it the static path, where it has one.

    The lexical path lies behind both, in numbers of its own.
    """

    def __init__(
        self, encoder: PreTrainedModel, static: StaticPath | None = None, lexical: LexicalPath | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.static = static
        self.lexical = lexical

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids, attention_mask: int64[B, T].   Returns float32[B, D] of length one, and the same before that."""
        if self.static is None:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
            mean = mean_pool(states, attention_mask.to(states.dtype))
            return l2_normalize(mean), mean
        # Looked up once: both paths read the same rows.
        rows = self.encoder.get_input_embeddings()(input_ids)
        # Before the layers: in the graph the last product with the mask is then that of the token states.
        static = self.static(input_ids, attention_mask, rows.float())
        lexical = None if self.lexical is None else self.lexical(input_ids, attention_mask)
        states = self.encoder(inputs_embeds=rows, attention_mask=attention_mask).last_hidden_state.float()
        both = self.static.beside(mean_pool(states, attention_mask.to(states.dtype)), static)
        if self.lexical is not None and lexical is not None:
            both = self.lexical.behind(both, lexical)
        return l2_normalize(both), both


def load_sentence_model(folder: Path) -> SentenceModel:
    """Load a checkpoint in float32, ready to infer."""
    # Without the pooler: nothing here uses it, and it would stay in the exported file.
    with quiet_loading():
        encoder, report = AutoModel.from_pretrained(
            folder, add_pooling_layer=False, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    # The library fills weights that it does not find with random numbers, and goes on.
    if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
        first = ", ".join(sorted(map(str, lacking))[:3])
        raise CheckpointError(f"{folder / 'model.safetensors'} lacks {len(lacking)} of the model's tensors: {first}, …")
    # eval() on the outermost module: exporters put the module back into the mode they found it in, and an inner
    # model's dropout would be on while the reference is computed.
    return SentenceModel(encoder, load_static_path(folder), load_lexical_path(folder)).eval()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the loading report and its bar: a checkpoint with a pooler has tensors that nothing here reads."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def torch_run(model: SentenceModel, threads: int = 0) -> Callable[[TokenBatch], NDArray[np.float32]]:
    """The model as a function of a batch, without gradients, where its weights are.

    threads: torch's, 0 leaves them as they are.
    """
    if threads:
        torch.set_num_threads(threads)
    device = next(model.parameters()).device

    def run(batch: TokenBatch) -> NDArray[np.float32]:
        with torch.inference_mode():
            unit, _ = model(torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.mask).to(device))
        vectors: NDArray[np.float32] = unit.cpu().numpy()
        return vectors

    return run
