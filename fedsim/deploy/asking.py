"""The coordinator's half of `fedsim deploy statistics`: has the nodes of a site asked, and takes what they come to."""

from fedsim.deploy.following import Ticket
from fedsim.deploy.node.summing import summarised
from fedsim.deploy.running import submit
from fedsim.deploy.site import Site
from fedsim.deploy.statistics import Summary
from fedsim.deploy.submission import deployable
from fedsim.errors import Refused, ScenarioError
from fedsim.progress import Progress
from fedsim.scenario import Scenario


def ask(
    scenario: Scenario, site: Site, least: int, *, nodes: int | None = None, wait: float = 600.0, progress: Progress
) -> Summary:
    """Statistics of the scenario's columns over the nodes of a site.

    Args:
        scenario: of a table with a schema; where its numbers get their scales from does not matter yet.
        site: whose server is running.
        least: rows of which a node is to tell a statistic; its owner's rule may ask for more.
        nodes: how many there must be; all that are admitted by default.
        wait: seconds for which they are waited for.
        progress: is told what goes on.

    Raises:
        FedsimError: the scenario is of no table, or nobody tells anything.
    """
    try:
        summarised(scenario)
    except Refused as error:
        raise ScenarioError(f"{scenario.origin}: {error}") from error
    asked, _ = deployable(scenario.changed({"data.preprocess": {"kind": "constants"}}))
    ticket = Ticket.new("statistics", asked, origin=scenario.origin, nodes=nodes, wait=wait, more={"least": least})
    return Summary.model_validate(submit(site, ticket, progress))
