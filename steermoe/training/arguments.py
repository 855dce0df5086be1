"""transformers' TrainingArguments from the section `training`."""

import torch
from transformers import TrainingArguments

from steermoe.config import Distributed, Training


def arguments(
    training: Training, steps: int, seed: int, workers: int, distributed: Distributed
) -> TrainingArguments:
    """The Trainer's own settings; what it must not do by itself is switched off.

    Raises:
        ValueError: float16 without a GPU, or under ZeRO; warm-up or the first evaluation come after the last step.
    """
    for name, most in (("warmup_steps", steps - 1), ("eval_steps", steps)):
        found = getattr(training, name)
        if training.epochs is not None and found > most:  # of steps, the schema knows
            length = f"{training.epochs} epochs are {steps} steps"
            raise ValueError(f"training.{name}: found {found}; legal: at most {most}, as {length}")
    cuda = torch.cuda.is_available()
    if training.precision == "float16" and not cuda:
        raise ValueError(
            "training.precision: found 'float16', whose scaled loss needs a GPU; here use bfloat16"
        )
    if training.precision == "float16" and distributed.strategy in ("zero2", "zero3"):
        raise ValueError(
            f"training.precision: found 'float16', whose scaled loss is not for {distributed.strategy}; legal: "
            "float32, bfloat16"
        )
    every = training.eval_steps
    found = TrainingArguments(
        output_dir=".",  # never written to: see `AdapterTrainer._get_output_dir`
        seed=seed,
        max_steps=steps,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        fp16=training.precision == "float16",
        use_cpu=not cuda,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        # A divisor of `every`: an evaluation never falls between two logs.
        logging_steps=max(count for count in range(1, 26) if every % count == 0),
        logging_nan_inf_filter=False,
        dataloader_num_workers=workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to="none",
    )
    # Without a launcher the Trainer would spread over all GPUs by DataParallel; `processes` says how many.
    if found.n_gpu > 1:
        found._n_gpu = 1
    return found
