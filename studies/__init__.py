"""The paper's open questions and limits, each answered by a study: ``python -m studies NAME``."""
