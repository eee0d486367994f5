"""Who is calling: principals, tokens verified offline, revocations, and the policy that every method declares."""
