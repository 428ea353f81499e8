"""Where fine-tunes lie and which models they left: the folder of jobs, and a name for each student in it.

In: nothing but the environment and what is on disk. Out: folders. A name is made of the job's id, never of what a person typed. It knows
nothing about networks, and is torch-free for the page.
"""

import os
import re
from pathlib import Path

NAME = "student-"  # what the name of every student begins with
JOB_ID = re.compile("[0-9a-f]{32}")


def jobs_folder():
    """VIDEOLCM_JOBS of the environment, runs/jobs without it."""
    return Path(os.environ.get("VIDEOLCM_JOBS", "runs/jobs"))


def job_folders(folder):
    """{id: folder} of every job in `folder`."""
    return {path.name: path for path in sorted(folder.glob("*")) if JOB_ID.fullmatch(path.name) and (path / "job.json").is_file()}


def students(folder=None):
    """{name: folder} of every student that a job has written, at its previews or its end."""
    found = job_folders(folder or jobs_folder())
    return {name_of(job): path for job, path in found.items() if (path / "manifest.json").is_file()}


def name_of(job):
    """The name of the student of the job with this id."""
    return NAME + job[:8]
