"""The work behind Blend: parts measured and fused in their turn, the result kept as a draft."""

from dataclasses import dataclass

from studio.blends.account import Account
from studio.blends.blend import Blend, blended, load_parts
from studio.blends.drafts import Drafts
from studio.blends.interference import Pair, measured
from studio.errors import StoppedError
from studio.library import AdapterLibrary
from studio.worker import Task

KIND = "blend"


@dataclass(frozen=True)
class BlendRunner:
    """Runs jobs of `KIND`; what they report is `Measuring`, their result is the draft's name.

    It does not touch the model, so that it need not wait for those who draw.
    """

    library: AdapterLibrary
    drafts: Drafts

    def __call__(self, task: Task) -> None:
        """Make the draft of the task's blend."""
        blend = Blend.read(task.job.settings)
        parts = load_parts(self.library, blend)
        pairs = []
        for item in measured(parts):
            if task.stop.is_set():
                raise StoppedError("Stopped: there is no blend.")
            if isinstance(item, Pair):
                pairs.append(item)
            else:
                task.report(item)
        made = blended(blend, parts, name="blend")
        draft = self.drafts.keep(made, Account.of(blend, made, parts, pairs))
        task.keep(draft.name)
