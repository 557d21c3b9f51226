"""Where the jobs of a campaign run: on this machine, with FireWorks, or with jobflow-remote."""
