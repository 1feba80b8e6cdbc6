"""The jobs, one a file: `run` does what its docstring tells users. They are imported when they are run."""
