"""The tables and functions of what gateways share in PostgreSQL. The database's clock counts for all."""

from __future__ import annotations

from ...domain.limits import WINDOW

# A gateway says that it lives every so many seconds; what one holds that has been silent for longer is given back.
BEAT_SECONDS, SILENT_SECONDS = 3.0, 12.0
_LOCK = 0x61766F64
# After so long nobody remembers what a gateway that ended has counted, and what keys have used.
_FORGOTTEN, _FORGOTTEN_USE = "400 days", "7 days"

SCHEMA = f"""
SELECT pg_advisory_xact_lock({_LOCK});
CREATE TABLE IF NOT EXISTS avocado_gateways (
    id uuid PRIMARY KEY, seen timestamptz NOT NULL DEFAULT now(), counts jsonb);
CREATE TABLE IF NOT EXISTS avocado_taken (
    id bigint PRIMARY KEY, key text NOT NULL, gateway uuid NOT NULL, at timestamptz NOT NULL,
    running boolean NOT NULL, held bigint NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS avocado_taken_of_key ON avocado_taken (key, at);
CREATE TABLE IF NOT EXISTS avocado_tokens (
    key text NOT NULL, day date NOT NULL, tokens bigint NOT NULL, PRIMARY KEY (key, day));

-- What a key holds: requests that run, the tokens that are set aside for them, and those that were used today.
CREATE OR REPLACE FUNCTION avocado_holds(k text, OUT running bigint, OUT held bigint, OUT used bigint, OUT recent bigint,
    OUT again double precision) LANGUAGE sql AS $$
    SELECT count(*) FILTER (WHERE t.running AND g.seen > now() - interval '{SILENT_SECONDS} s'),
           coalesce(sum(t.held) FILTER (WHERE g.seen > now() - interval '{SILENT_SECONDS} s'), 0),
           coalesce((SELECT d.tokens FROM avocado_tokens d WHERE d.key = k AND d.day = (now() AT TIME ZONE 'utc')::date), 0),
           count(*) FILTER (WHERE t.at > now() - interval '{WINDOW} s'),
           extract(epoch FROM min(t.at) FILTER (WHERE t.at > now() - interval '{WINDOW} s') + interval '{WINDOW} s' - now())
    FROM avocado_taken t LEFT JOIN avocado_gateways g ON g.id = t.gateway WHERE t.key = k
$$;

-- Let request n of a key pass, or say which limit it met and the seconds or tokens that say more.
CREATE OR REPLACE FUNCTION avocado_enter(k text, n bigint, who uuid, does_run boolean, most_at_once bigint, most_tokens bigint,
    most_a_minute bigint, OUT met text, OUT more double precision) LANGUAGE plpgsql AS $$
DECLARE has record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(k, {_LOCK}));
    DELETE FROM avocado_taken t WHERE t.key = k AND t.at <= now() - interval '{WINDOW} s' AND NOT (
        (t.running OR t.held > 0) AND EXISTS (
            SELECT 1 FROM avocado_gateways g WHERE g.id = t.gateway AND g.seen > now() - interval '{SILENT_SECONDS} s'));
    SELECT * INTO has FROM avocado_holds(k);
    IF does_run AND has.running >= most_at_once THEN met := 'parallel'; RETURN; END IF;
    IF does_run AND has.used >= most_tokens THEN met := 'tokens'; more := has.used; RETURN; END IF;
    IF has.recent >= most_a_minute THEN met := 'requests'; more := has.again; RETURN; END IF;
    INSERT INTO avocado_taken (id, key, gateway, at, running) VALUES (n, k, who, now(), does_run);
END $$;

-- Set tokens aside for request n: how many it has now, none where others hold what is left; and what was used, or -1 where
-- the request is not known (any more).
CREATE OR REPLACE FUNCTION avocado_reserve(k text, n bigint, most_tokens bigint, wanted bigint, grows bigint,
    OUT got bigint, OUT used_today bigint) LANGUAGE plpgsql AS $$
DECLARE has record; mine bigint; need bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(k, {_LOCK}));
    SELECT held INTO mine FROM avocado_taken WHERE id = n AND running FOR UPDATE;
    IF NOT FOUND THEN used_today := -1; RETURN; END IF;
    SELECT * INTO has FROM avocado_holds(k);
    used_today := has.used;
    IF grows > 0 THEN
        need := mine + least(grows, most_tokens - has.used - has.held);
        IF need <= mine THEN RETURN; END IF;
    ELSE
        need := CASE WHEN wanted IS NULL THEN most_tokens - has.used ELSE least(most_tokens - has.used, wanted) END;
        IF need <= 0 OR need > most_tokens - has.used - has.held THEN RETURN; END IF;
    END IF;
    UPDATE avocado_taken SET held = need WHERE id = n;
    got := need;
END $$;
"""
LEAVE = "UPDATE avocado_taken SET running = false WHERE id = %s"
LEAVE_ALL = "UPDATE avocado_taken SET running = false, held = 0 WHERE id = %s"
NEVER_CAME = "DELETE FROM avocado_taken WHERE id = %s"
RELEASE = """WITH freed AS (UPDATE avocado_taken SET held = 0 WHERE id = %s)
    INSERT INTO avocado_tokens VALUES (%s, (now() AT TIME ZONE 'utc')::date, %s)
    ON CONFLICT (key, day) DO UPDATE SET tokens = avocado_tokens.tokens + excluded.tokens"""
BEAT = """INSERT INTO avocado_gateways VALUES (%s, now(), %s)
    ON CONFLICT (id) DO UPDATE SET seen = now(), counts = excluded.counts"""
OTHERS = f"""SELECT counts, seen > now() - interval '{SILENT_SECONDS} s' FROM avocado_gateways
    WHERE id <> %s AND counts IS NOT NULL"""
FORGET = (
    f"DELETE FROM avocado_gateways WHERE seen < now() - interval '{_FORGOTTEN}'",
    f"DELETE FROM avocado_taken WHERE at < now() - interval '{_FORGOTTEN_USE}'",
    f"DELETE FROM avocado_tokens WHERE day < (now() - interval '{_FORGOTTEN_USE}')::date",
)
