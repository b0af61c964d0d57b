"""Which prompt mteb's tasks get: two named protocols, because published E5 figures follow two.

paper: unilm/e5/mteb_eval.py and mteb_beir_eval.py, with which the tables of the E5 reports were made. "query: " on both
sides of everything but retrieval; Quora, where questions look for questions, has it on both sides too.
mteb-current: mteb's own registration of E5 (models/model_implementations/e5_models.py): a prompt where a task says
query or document, which retrieval and reranking do, and none elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from service.recipe.prompts import Role

MtebProtocolName = Literal["paper", "mteb-current"]
_RETRIEVAL = ("Retrieval", "InstructionRetrieval")
# unilm/e5/utils.py, get_task_def_by_task_name_and_type; everything else it lists is what mteb's tasks say themselves.
_PAPER_INSTRUCTIONS = {
    "STS": "Retrieve semantically similar text.",
    "BitextMining": "Retrieve parallel sentences.",
    "Summarization": "Given a news summary, retrieve other semantically similar summaries",
}
_MIRACL_INSTRUCTION = "Given a question, retrieve Wikipedia passages that answer the question"
# The paper's Table 4 averages 16 languages, mteb all 18.
MIRACL_PAPER = ("ar", "bn", "en", "es", "fa", "fi", "fr", "hi", "id", "ja", "ko", "ru", "sw", "te", "th", "zh")


@dataclass(frozen=True)
class MtebProtocol:
    """unit_classification: scale vectors to length one before classification. The paper's code does not ("slightly
    better"), mteb leaves it to the model; it makes a difference only for systems that give vectors as they are.
    """

    name: MtebProtocolName
    unit_classification: bool = True


# What a task itself tells an instruct model.
OwnInstruction = Callable[[TaskMetadata, PromptType], str]


@dataclass(frozen=True)
class AskedBy:
    """How a task's texts are to be read."""

    role: Role | None
    instruction: str | None


def asked_by(
    protocol: MtebProtocol, task: TaskMetadata, prompt_type: PromptType | None, own: OwnInstruction | None
) -> AskedBy:
    """The role and instruction of one side of a task.   own: for an instruct model.

    An instruct model has the instruction on both sides of everything but retrieval, whose documents have no prompt.
    """
    role = role_of(protocol.name, task.name, task.type, prompt_type)
    if own is None or role == "passage":
        return AskedBy(role, None)
    fixed = fixed_instruction(task.name, task.type) if protocol.name == "paper" else None
    return AskedBy("query", fixed or own(task, prompt_type or PromptType.query))


def role_of(protocol: MtebProtocolName, name: str, kind: str, prompt_type: PromptType | None) -> Role | None:
    """The prompt's role; None is a text as it stands.   name, kind: the task's name and type."""
    if protocol == "mteb-current":
        return None if prompt_type is None else ("passage" if prompt_type is PromptType.document else "query")
    looks_for_passages = kind in _RETRIEVAL and not name.startswith("Quora")
    return "passage" if looks_for_passages and prompt_type is PromptType.document else "query"


def fixed_instruction(name: str, kind: str) -> str | None:
    """The sentence that the paper's code has for a task, where it is not what mteb's task says."""
    # MIRACLRetrievalHardNegatives has no instruction of its own in mteb, and the general one costs eight points.
    return _MIRACL_INSTRUCTION if name.startswith("MIRACL") else _PAPER_INSTRUCTIONS.get(kind)
