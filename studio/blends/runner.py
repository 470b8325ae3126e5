"""The work behind Blend: parts measured and fused in their turn, the result kept as a draft."""

import dataclasses
from dataclasses import dataclass

from shira_diffusion import Adapter
from shira_diffusion.cards import EMBEDDINGS
from studio.blends.account import Account
from studio.blends.blend import Blend, blended, load_parts
from studio.blends.drafts import Drafts
from studio.blends.interference import Pair, measured
from studio.errors import StoppedError
from studio.library import AdapterLibrary, Entry
from studio.newwords import has_word, word_of
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
        account = Account.of(blend, made, parts, pairs)
        bearers = bearers_of(self.library, blend)
        if len(bearers) == 1:
            made = _with_word(made, bearers[0])
            draft = self.drafts.keep(made, account, bearers[0].folder / EMBEDDINGS)
        else:
            draft = self.drafts.keep(made, account)
        task.keep(draft.name)


def bearers_of(library: AdapterLibrary, blend: Blend) -> list[Entry]:
    """The parts that bring a word of their own; of a single one the blend takes it over."""
    return [entry for name in blend.parts if has_word(entry := library.find(name))]


def _with_word(made: Adapter, bearer: Entry) -> Adapter:
    training = {**made.info.training, "new_token": word_of(bearer).word}
    return Adapter(made.entries, dataclasses.replace(made.info, training=training))
