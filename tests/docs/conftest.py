import pytest


@pytest.fixture(autouse=True)
def _registries_as_they_were():
    """Pages and examples register families and codecs of their own."""
    from rmm_gnn.codecs import CODECS
    from rmm_gnn.sketches import FAMILIES

    before = [(registry, dict(registry)) for registry in (FAMILIES, CODECS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
