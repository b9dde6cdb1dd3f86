"""What a board's page tells of a run besides its numbers: what the prompts say, and what the metrics mean.

Prompts that came by a fetch or from a hub stay out: whether they may be handed on is not this project's to say.
"""

from benchmarks.plan import Plan
from benchmarks.prompt_files import is_hub_source
from benchmarks.sets import declared_sets
from leaderboards.about import About, MetricNotes
from metrics.loaded import Scorer


def about_run(plan: Plan) -> About:
    """Return the texts of all prompts that were drawn, and the notes of all metrics that were asked for."""
    scorer = Scorer(sorted({metric for task in plan.tasks for metric in task.spec.metrics}))
    texts = {
        task.spec.name: {prompt.id: prompt.text for prompt in task.image_set.prompts.prompts}
        for task in plan.running
        if may_be_told(task.image_set.prompts.name)
    }
    cards = [scorer.card(metric) for metric in scorer.metrics]
    notes = {
        card.id: MetricNotes(
            description=card.description, comparable=card.comparable, fooled_by=card.fooled_by, source=card.source
        )
        for card in cards
    }
    return About(prompts=texts, metrics=notes)


def may_be_told(prompt_set: str) -> bool:
    """Whether a board may hold the texts of a prompt set: those this project ships, and files of the user's own."""
    entry = declared_sets().get(prompt_set)
    return entry.shipped if entry else not is_hub_source(prompt_set)
