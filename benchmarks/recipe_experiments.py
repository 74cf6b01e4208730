"""The experiments of `benchmarks/recipe.py`: a text, what all arms share, and what each arm changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

M, S, M2 = "mamba", "standard", "mamba2"


@dataclass(frozen=True)
class Experiment:
    """`dataset` is a folder below --data. `validation_files` are files of it; none: as the program splits."""

    about: str
    dataset: str
    base: dict[str, Any]
    arms: dict[str, dict[str, Any]] = field(default_factory=lambda: {"base": {}})
    validation_files: tuple[str, ...] = ()


WHOLE_RUNS: dict[str, Any] = {
    "warmup_iters": 100, "beta2": 0.99, "schedule": "constant", "average_decay": 0.995, "eval_iters": 1000,
    "sample_tokens": 0, "compile": "false", "keep_last": 1, "keep_best": 0, "checkpoint_interval": 100_000,
}  # fmt: skip
SHAKESPEARE: dict[str, Any] = {
    **WHOLE_RUNS, "n_embd": [320] * 6, "n_head": 5, "attention_type": [M, S] * 3, "block_size": 256,
    "batch_size": 64, "tokenizer": "char", "dropout": 0.3, "mixer_dropout": 0.3, "weight_decay": 1.0,
    "learning_rate": 1e-3, "max_iters": 1500, "eval_interval": 250,
}  # fmt: skip
CPU: dict[str, Any] = {
    **WHOLE_RUNS, "n_embd": [128] * 4, "n_head": 4, "attention_type": [M, S] * 2, "block_size": 64,
    "batch_size": 12, "tokenizer": "char", "weight_decay": 0.1, "learning_rate": 2e-3, "max_iters": 2000,
    "eval_interval": 500, "eval_iters": 50, "threads": 1,
}  # fmt: skip
NOVELS: dict[str, Any] = {
    **WHOLE_RUNS, "n_embd": [416] * 8, "n_head": 8, "attention_type": [M, S] * 4, "block_size": 256,
    "batch_size": 128, "tokenizer": "auto", "vocab_size": 4096, "dropout": 0.2, "mixer_dropout": 0.2,
    "weight_decay": 0.5, "learning_rate": 1e-3, "max_iters": 1100, "eval_interval": 275,
}  # fmt: skip
STRONGER = {"dropout": 0.3, "mixer_dropout": 0.3, "weight_decay": 1.0}
LIBRARY: dict[str, Any] = {
    **NOVELS, "n_embd": [512] * 10, "attention_type": [M, S] * 5, "vocab_size": 8192, "dropout": 0.1,
    "mixer_dropout": 0.1, "max_iters": 2400, "eval_interval": 600,
}  # fmt: skip

EXPERIMENTS = {
    "shakespeare": Experiment(
        "tiny-shakespeare, characters, the last tenth for validation, one GPU",
        "shakespeare",
        SHAKESPEARE,
        {
            "base": {},
            "cosine-no-average": {"schedule": "cosine", "average_decay": 0.0, "beta2": 0.95},
            "no-average": {"average_decay": 0.0},
            "beta2-0.95": {"beta2": 0.95},
            "decay-2": {"weight_decay": 2.0},
            "rate-2e-3": {"learning_rate": 2e-3},
            "half-batch": {"batch_size": 32, "max_iters": 3000},
            "2500-steps": {"dropout": 0.4, "max_iters": 2500},
            "no-mixer-dropout": {"dropout": 0.4, "mixer_dropout": 0.0},
            "mixer-dropout-0.4": {"mixer_dropout": 0.4},
            "carry-1": {"carry_chunks": 1},
            "student": {"teacher": "base"},
            "student-0.75": {"teacher": "base", "teacher_share": 0.75},
            "block-128": {"block_size": 128, "batch_size": 128},
            "mamba": {"attention_type": [M] * 6},
            "mamba2": {"attention_type": [M2, S] * 3},
            "attention": {"attention_type": [S] * 6},
            "hourglass": {"n_embd": [384, 320, 256, 256, 320, 384], "n_head": [6, 5, 4, 4, 5, 6]},
            "wider": {
                "n_embd": [384, 352, 352, 352, 352, 384], "n_head": [6, 11, 11, 11, 11, 6],
                "dropout": 0.35, "mixer_dropout": 0.35,
            },
        },
    ),
    "cpu": Experiment(
        "tiny-shakespeare at nanoGPT's CPU budget: 2,000 steps of 12 x 64 characters, 0.92 M parameters",
        "shakespeare",
        CPU,
        {
            "base": {},
            "before": {"schedule": "cosine", "average_decay": 0.0, "beta2": 0.95},
            "rate-4e-3": {"learning_rate": 4e-3},
            "average-0.99": {"average_decay": 0.99},
            "mamba2": {"attention_type": [M2, S] * 2},
            "mamba": {"attention_type": [M] * 4, "n_embd": [116] * 4},
            "mamba2-only": {"attention_type": [M2] * 4, "n_embd": [120] * 4},
            "attention": {"attention_type": [S] * 4, "n_embd": [136] * 4},
            "student": {"teacher": "base"},
            "mamba2-student": {"teacher": "mamba2-only", "attention_type": [M2] * 4, "n_embd": [120] * 4},
            "mamba2-rate-4e-3": {"attention_type": [M2] * 4, "n_embd": [120] * 4, "learning_rate": 4e-3},
            "mamba2-long-cool-down": {
                "attention_type": [M2] * 4, "n_embd": [120] * 4, "cooldown_iters": 1000,
            },
            "mixer-dropout-0.05": {"mixer_dropout": 0.05},
            "carry-1": {"carry_chunks": 1},
            "three-layers": {"attention_type": [M, S, M], "n_embd": [144] * 3},
            "long-cool-down": {"cooldown_iters": 1000},
            "hourglass": {"n_embd": [136, 112, 112, 136]},
        },
    ),
    "novels": Experiment(
        "six novels, Pride and Prejudice for validation, one GPU",
        "books",
        NOVELS,
        {
            "base": {},
            "steps-by-text": {"max_iters": 0},
            "stronger": STRONGER,
            "mamba": {"attention_type": [M] * 8},
            "wider": {"n_embd": [640] * 8, "n_head": 10, **STRONGER},
            "attention": {"attention_type": [S] * 8, "n_embd": [448] * 8},
            "mamba2": {"attention_type": [M2, S] * 4, "d_state": 64},
            "vocabulary-1024": {"vocab_size": 1024, "block_size": 384, "max_iters": 1000},
            "vocabulary-2048": {"vocab_size": 2048, "block_size": 320, "max_iters": 1000},
            "block-512": {"block_size": 512, "batch_size": 64},
            "half-batch": {"batch_size": 64, "max_iters": 2200},
            "student": {"teacher": "base"},
            "grandstudent": {"teacher": "student"},
            "student-0.75": {"teacher": "base", "teacher_share": 0.75},
            "mostly-mamba": {"attention_type": [M, M, M, S] * 2},
            "wide-state": {"d_state": 32},
            "long-cool-down": {"cooldown_iters": 550},
            "rate-2e-3": {"learning_rate": 2e-3},
            "carry-64": {"carry_chunks": 64},
            "wide-state-student": {
                "teacher": "wide-state", "d_state": 32, "cooldown_iters": 600, "max_iters": 1200,
            },
            "fast": {"learning_rate": 2e-3, "d_state": 32},
            "fast-student": {
                "teacher": "fast", "learning_rate": 2e-3, "d_state": 32, "cooldown_iters": 600,
                "max_iters": 1200,
            },
            "faster-stronger": {"learning_rate": 3e-3, "d_state": 32, "dropout": 0.25, "mixer_dropout": 0.25},
            "deeper": {"n_embd": [352] * 12, "attention_type": [M, S] * 6},
        },
        ("pride-and-prejudice.txt",),
    ),
    "library": Experiment(
        "37 novels, Pride and Prejudice for validation, one GPU",
        "library",
        LIBRARY,
        {
            "base": {},
            "wider": {"n_embd": [768] * 10, "n_head": 12, "dropout": 0.2, "mixer_dropout": 0.2},
            "wider-vocabulary-4096": {
                "n_embd": [768] * 10, "n_head": 12, "dropout": 0.2, "mixer_dropout": 0.2, "vocab_size": 4096,
            },
        },
        ("pride-and-prejudice.txt.gz",),
    ),
    "rehearsal": Experiment(
        "a tiny run, to see that all of this works",
        "shakespeare",
        {
            **SHAKESPEARE, "n_embd": [32] * 2, "n_head": 2, "attention_type": [M, S], "block_size": 128,
            "batch_size": 8, "max_iters": 30, "eval_interval": 10, "eval_iters": 5, "warmup_iters": 5,
        },
        {"base": {}, "student": {"teacher": "base"}},
    ),
}  # fmt: skip
