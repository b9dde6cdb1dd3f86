"""Groups of questions (DPG-Bench's categories, GenEval2's skills) as the category values of a result.

A category of prompts that has the name of a group stands in the result instead of it: evidence proves the former.
"""

from collections.abc import Sequence

from leaderboards.schema import CategoryValue
from metrics.base import Prompt, Summary
from metrics.questions import QuestionSummary


def group_values(summary: Summary, prompts: Sequence[Prompt]) -> dict[str, CategoryValue]:
    """Return a value per group of questions, {} for summaries without any; prompts: those of the summary's images.

    A group's value is a mean over its questions. It has no interval: its questions are not drawn one by one."""
    if not isinstance(summary, QuestionSummary):
        return {}
    found = {}
    for name, group in summary.groups.items():
        images = group.questions_N.nonzero()[0].tolist()
        found[name] = CategoryValue(
            value=group.value, n_prompts=len({prompts[index].id for index in images}), n_images=len(images)
        )
    return found
