"""Long work in the background: jobs on disk before they are accepted, resumed after a crash, never done twice."""
