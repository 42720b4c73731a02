"""The documentation site: pages made of the code, links between them, Sphinx's settings. `make docs` builds it."""
