"""`python -m embridge`: the same as `embridge`, where the script is not on the path."""

from embridge.pipeline.cli import main

if __name__ == "__main__":
    main(prog_name="embridge")
