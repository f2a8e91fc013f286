"""One job in many processes: who they are (``launch``), what each does (``share``), how they agree (``ranks``)."""
