"""how a conversation reads to a model: templates, families, tool formats, chat templates."""
