"""Tell a failure where operators look: the journal, and the log of `incus info --show-log`."""

from inx_sidecar.base import lxc_log
from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.incus.instance import LxcFacts


def log_failure(facts: LxcFacts, error: InxError) -> None:
    """Log why the instance that LXC described by `facts` does not do what was asked for."""
    instance_log(facts.lxc_name).error("%s", error)
    lxc_log.append(facts.lxc_config, facts.lxc_name, str(error))
