"""What the LLM is asked, per task."""

from steermoe.config import Prompts

TASKS = ("transcribe", "answer")


def render(prompts: Prompts, task: str, question: str) -> str:
    """The text between audio and answer.

    Args:
        prompts: a template a task.
        task: one of TASKS.
        question: replaces `{question}` in the template; "" where the task asks none.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; one of: {', '.join(TASKS)}")
    return getattr(prompts, task).replace("{question}", question)
