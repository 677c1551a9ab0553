"""How Ray and its workers behave: variables of the environment that are read when they start, and a limit's name."""

from flwr.app import Message

from fedsim.flower import failed

MEMORY = {
    # What a worker frees it soon needs again: it keeps its memory instead of asking the system anew for every client.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    # Vectors on large pages: a small net's step touches some thousand pages of 4 KiB, more than a core remembers.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_events_report_interval_ms": "0",  # a history of calls, for the absent dashboard
    "RAY_enable_metrics_collection": "0",  # likewise; it cost as much as all else that Ray does while nobody calls
    # On one machine nobody restarts Ray's store of facts: what waits for it once the driver was killed waits in vain.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    # Ray would run workers at nice 15, and whatever else the machine does would slow them down several times.
    "RAY_worker_niceness": "0",
    # Sums of up to 2 MB come with the reply: 2 ms of processor time in all, and 6 by way of the object store.
    "RAY_max_direct_call_object_size": "2000000",
    "RAY_task_rpc_inlined_bytes_limit": "100000000",
    # What is freed is so at once, not once a second: the next value then lies in memory that everybody has mapped
    # already, where each new page would cost more than copying to it (5 ms of processor time for 6.7 MB, now 2).
    "RAY_free_objects_batch_size": "1",
}


def named_limit(reply: Message, memory: float) -> Message:
    """A reply; that of a client for which `memory`, in GB, was too little names the key."""
    reason = str(reply.error.reason) if reply.has_error() else ""
    if "MemoryError" not in reason and "allocate memory" not in reason:
        return reply
    return failed(reply, f"{reason[:300]}; engine.memory = {memory:g} GB is too little for this client")
