"""The process of a rank other than 0. It computes what rank 0 decides and writes only to the log."""

from __future__ import annotations

import signal
import traceback

from core.config.schema import RunConfig
from core.errors import UserError
from core.runs import CheckpointInfo, Run
from core.training.build import build_parts, open_device
from core.training.launcher import EXIT_LOST
from core.training.ranks import RankLostError, Ranks
from core.training.requests import StopRequestedError, say
from core.training.shared_requests import NoEvents, SharedRequests
from core.training.trainer import Trainer

OK, FAILURE, BAD_INPUT = 0, 1, 2


def follow(run: Run, config: RunConfig, ranks: Ranks) -> int:
    """Train this rank's rows until rank 0 ends the run. Returns the exit code."""
    try:
        ranks.join(open_device(config, ranks))
        # Requests to stop go to rank 0.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        newest: CheckpointInfo | None = ranks.from_first(lambda: None)
        parts = build_parts(run, config, newest, lambda detail, share: None, ranks)
        Trainer(run, parts.config, parts, NoEvents(), SharedRequests(ranks)).train()
        ranks.leave()
    except StopRequestedError:
        return OK
    except RankLostError as error:
        say(f"rank {ranks.rank}: {error}")
        return EXIT_LOST
    except Exception as error:
        _tell_launcher(error)
        say(f"rank {ranks.rank}: {traceback.format_exc()}")
        return BAD_INPUT if isinstance(error, UserError) else FAILURE
    return OK


def _tell_launcher(error: Exception) -> None:
    """Write the error where torchrun looks for it."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
