"""The options of ``pytest benchmarks``."""


def pytest_addoption(parser) -> None:
    parser.addoption("--device", default="cpu", help="where to run the benchmarks: cpu or cuda")
