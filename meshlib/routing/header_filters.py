"""Header mutation filters at one route: the listener's, with what the levels say.

A filter's own changes come first, then those of the levels, the most specific first unless the filter says otherwise.
Filters run in their order for requests and the other way round for responses, before the route's own mutations of a
request and after those of a response.

Source: Envoy `HeaderMutation` (filter), and how it finds the configurations of a route.
"""

from collections.abc import Sequence

from meshlib.model.filters import HeaderFilter, HeaderFilters, ListedHeaderFilter
from meshlib.model.headers import HeaderChange

__all__ = ["filter_changes"]


def filter_changes(listed: Sequence[ListedHeaderFilter], levels: Sequence[HeaderFilters]) -> HeaderFilter:
    """Return all changes that filters make at a route.

    Args:
        listed: In the order of the chain.
        levels: The most specific first.
    """
    request: list[HeaderChange] = []
    response: list[HeaderChange] = []
    for item in listed:
        said = [dict(level)[item.name] for level in levels if item.name in dict(level)]
        # The most specific level that says anything decides whether the filter runs.
        if said[0] is None if said else item.is_disabled:
            continue
        configs = [config for config in said if config is not None]
        if item.most_specific_wins:
            configs.reverse()
        parts = [item.own, *configs]
        request += [change for part in parts for change in part.request]
        response[:0] = [change for part in parts for change in part.response]
    return HeaderFilter(tuple(request), tuple(response))
