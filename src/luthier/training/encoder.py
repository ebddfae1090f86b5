"""a configuration -> the encoder of its rows, without a model."""

from __future__ import annotations

from luthier.arguments.record import Arguments
from luthier.data.encode import Encoder, EncodingOptions


def load_encoder(arguments: Arguments) -> Encoder:
    """Encodes rows as a run of these arguments does: tokenizer, template and options are its.

    Raises:
        LuthierError: if there is no tokenizer to read, or the template does not fit it.
    """
    from luthier.modeling.tokenizer import load_tokenizer
    from luthier.templates.choose import choose_template
    from luthier.templates.fit import fit_tokenizer

    tokenizer = load_tokenizer(arguments.model, min_length=arguments.data.cutoff_len)
    template = choose_template(arguments.data, tokenizer)
    fit_tokenizer(tokenizer, template)
    return Encoder(tokenizer, template, EncodingOptions.of(arguments.data))
