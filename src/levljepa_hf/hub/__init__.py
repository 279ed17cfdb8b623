"""The Hub: model cards, publishing, and converting what was released."""

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "cards": "LICENSE RELEASES add_figures card_on_hub checkpoint_card license_of model_card write_card",
        "publishing": "ModelCardMixin check_push explained_push prepare_push push_folder",
    },
)
