"""Train an agent, choose it by validation cases, and compare it with the baselines: ``python train.py --help``.

`llmsched_env.cli.train` is the command, and ``llmsched train`` what an installed package calls it.
"""

from llmsched_env.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
