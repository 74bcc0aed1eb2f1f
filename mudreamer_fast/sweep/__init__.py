"""Many runs from one file: tasks, seeds and variants, on this machine or on a cluster."""
