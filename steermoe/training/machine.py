"""How busy the machine is, by MLflow's own collectors: processor, memory, disk, network, and GPU if there is one."""


class Machine:
    """Takes samples; rates are of the time between two."""

    def __init__(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # It would log them itself, and lose what a server does not take. An address that is never asked: without
        # one it opens, and makes, MLflow's default store in the current folder, which may be ours being made.
        self._monitor = SystemMetricsMonitor("", tracking_uri="http://localhost")

    def load(self) -> dict[str, float]:
        """The figures of now, under the names that MLflow's page "System metrics" knows."""
        self._monitor.collect_metrics()
        found = {f"system/{name}": float(value) for name, value in self._monitor.aggregate_metrics().items()}
        for each in self._monitor.monitors:
            each.clear_metrics()
        return found
