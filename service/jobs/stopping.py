"""How a job is told to stop between two steps."""


class StopJob(Exception):
    """Raised out of a job's ``check``: the service stops, or somebody cancelled the job."""
