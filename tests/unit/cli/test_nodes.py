"""`brain nodes`, without a node."""

import json
import math

from brain.cli.nodes import as_list


def test_the_lag_of_a_node_that_has_not_read_the_log_is_null() -> None:
    """JSON has no infinity."""
    printed = as_list([{"name": "a", "lag": 0.5}, {"name": "b", "lag": math.inf}])
    assert "Infinity" not in printed
    assert [node["lag"] for node in json.loads(printed)] == [0.5, None]
