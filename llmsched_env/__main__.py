"""``python -m llmsched_env``: the command ``llmsched``."""

from llmsched_env.cli import main

raise SystemExit(main())
