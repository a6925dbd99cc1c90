# noqa: A005 - it is never imported without the package's name
