--
-- PostgreSQL database dump
--


-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: recorded; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA recorded;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: alembic_version; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: batches; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.batches (
    batch_id text NOT NULL COLLATE pg_catalog."C",
    partition integer NOT NULL,
    state text NOT NULL,
    outcome text,
    finalized_by text,
    revision integer DEFAULT 0 NOT NULL,
    generation integer DEFAULT 0 NOT NULL,
    sealed boolean NOT NULL,
    total_items integer,
    expected integer,
    matched integer DEFAULT 0 NOT NULL,
    succeeded integer DEFAULT 0 NOT NULL,
    partial integer DEFAULT 0 NOT NULL,
    failed integer DEFAULT 0 NOT NULL,
    skipped integer DEFAULT 0 NOT NULL,
    retrying integer DEFAULT 0 NOT NULL,
    created integer DEFAULT 0 NOT NULL,
    updated integer DEFAULT 0 NOT NULL,
    unchanged integer DEFAULT 0 NOT NULL,
    duplicates bigint DEFAULT '0'::bigint NOT NULL,
    late integer DEFAULT 0 NOT NULL,
    name text,
    metadata json,
    policy json,
    deadline_at timestamp with time zone,
    retry_of text COLLATE pg_catalog."C",
    request_retry boolean DEFAULT false NOT NULL,
    opened_at timestamp with time zone,
    first_result_at timestamp with time zone,
    last_result_at timestamp with time zone,
    last_result_offset bigint,
    last_answer_at timestamp with time zone,
    completed_at timestamp with time zone,
    finalized_at timestamp with time zone,
    decided_offset bigint,
    published_at timestamp with time zone,
    CONSTRAINT batches_completed_is_finalized CHECK (((completed_at IS NULL) OR (state = 'finalized'::text))),
    CONSTRAINT batches_finalized_at_its_time CHECK ((((state = 'finalized'::text) = (finalized_at IS NOT NULL)) AND ((state = 'finalized'::text) = (outcome IS NOT NULL)) AND ((state = 'finalized'::text) = (finalized_by IS NOT NULL)) AND ((state = 'finalized'::text) = (decided_offset IS NOT NULL)))),
    CONSTRAINT batches_finalized_by_known CHECK ((finalized_by = ANY (ARRAY['all_items_in'::text, 'deadline'::text, 'cancelled'::text, 'aborted'::text, 'forced'::text]))),
    CONSTRAINT batches_matched_is_expected CHECK ((matched <= COALESCE(expected, 0))),
    CONSTRAINT batches_outcome_known CHECK ((outcome = ANY (ARRAY['completed'::text, 'completed_with_errors'::text, 'failed'::text, 'cancelled'::text, 'expired'::text]))),
    CONSTRAINT batches_pending_has_no_result CHECK (((state <> 'pending'::text) OR (first_result_at IS NULL))),
    CONSTRAINT batches_processing_has_a_result CHECK (((state <> 'processing'::text) OR (first_result_at IS NOT NULL))),
    CONSTRAINT batches_published_has_a_revision CHECK (((published_at IS NULL) OR (revision > 0))),
    CONSTRAINT batches_state_known CHECK ((state = ANY (ARRAY['pending'::text, 'processing'::text, 'finalized'::text])))
)
WITH (fillfactor='70');


--
-- Name: COLUMN batches.partition; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.batches.partition IS 'the batch''s home on rollcall.events';


--
-- Name: COLUMN batches.total_items; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.batches.total_items IS 'the total as given';


--
-- Name: COLUMN batches.expected; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.batches.expected IS 'ids on the manifest; null: there is none';


--
-- Name: COLUMN batches.matched; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.batches.matched IS 'answered items on the manifest';


--
-- Name: COLUMN batches.completed_at; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.batches.completed_at IS 'the last answer of a finalized batch';


--
-- Name: COLUMN batches.finalized_at; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.batches.finalized_at IS 'append time of the record that decided';


--
-- Name: COLUMN batches.decided_offset; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.batches.decided_offset IS 'its offset';


--
-- Name: COLUMN batches.published_at; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.batches.published_at IS 'the broker acknowledged the event; a wall clock''s time';


--
-- Name: batch_status; Type: VIEW; Schema: recorded; Owner: -
--

CREATE VIEW recorded.batch_status AS
 SELECT batch_id,
    COALESCE(outcome, state) AS status,
    state,
    outcome,
    finalized_by,
    revision,
    generation,
    name,
    metadata,
    sealed,
    total,
    answered,
    succeeded,
    partial,
    failed,
    skipped,
    retrying,
    missing,
    unexpected,
    created,
    updated,
    unchanged,
    duplicates,
    late,
        CASE
            WHEN ((state = 'finalized'::text) AND (missing = 0)) THEN 100.0
            WHEN (total IS NULL) THEN NULL::numeric
            WHEN (total = 0) THEN 100.0
            ELSE round(LEAST(((100.0 * ((total - missing))::numeric) / (total)::numeric), 100.0), 1)
        END AS progress_percent,
        CASE
            WHEN (failed = 0) THEN NULL::text
            WHEN (failed = total) THEN format('All %s failed'::text, failed)
            WHEN (total IS NULL) THEN format('%s failed'::text, failed)
            ELSE format('%s of %s failed'::text, failed, total)
        END AS error_summary,
    deadline_at,
    retry_of,
    opened_at,
    first_result_at,
    last_result_at,
    completed_at,
    finalized_at,
    published_at,
    partition,
    decided_offset
   FROM ( SELECT b.batch_id,
            b.partition,
            b.state,
            b.outcome,
            b.finalized_by,
            b.revision,
            b.generation,
            b.sealed,
            b.total_items,
            b.expected,
            b.matched,
            b.succeeded,
            b.partial,
            b.failed,
            b.skipped,
            b.retrying,
            b.created,
            b.updated,
            b.unchanged,
            b.duplicates,
            b.late,
            b.name,
            b.metadata,
            b.policy,
            b.deadline_at,
            b.retry_of,
            b.request_retry,
            b.opened_at,
            b.first_result_at,
            b.last_result_at,
            b.last_result_offset,
            b.last_answer_at,
            b.completed_at,
            b.finalized_at,
            b.decided_offset,
            b.published_at,
            (((b.succeeded + b.partial) + b.failed) + b.skipped) AS answered,
            COALESCE(b.expected, b.total_items,
                CASE
                    WHEN (b.state = 'finalized'::text) THEN (((b.succeeded + b.partial) + b.failed) + b.skipped)
                    ELSE NULL::integer
                END) AS total,
                CASE
                    WHEN (b.expected IS NOT NULL) THEN (b.expected - b.matched)
                    ELSE GREATEST(0, (COALESCE(b.total_items, 0) - (((b.succeeded + b.partial) + b.failed) + b.skipped)))
                END AS missing,
                CASE
                    WHEN (b.expected IS NOT NULL) THEN ((((b.succeeded + b.partial) + b.failed) + b.skipped) - b.matched)
                    WHEN (b.total_items IS NULL) THEN 0
                    ELSE GREATEST(0, ((((b.succeeded + b.partial) + b.failed) + b.skipped) - b.total_items))
                END AS unexpected
           FROM recorded.batches b) counted;


--
-- Name: dead_letters; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.dead_letters (
    topic text NOT NULL,
    partition integer NOT NULL,
    record_offset bigint NOT NULL,
    appended_at timestamp with time zone NOT NULL,
    seq bigint NOT NULL,
    reason text NOT NULL,
    message text NOT NULL,
    batch_id text COLLATE pg_catalog."C",
    key bytea,
    value bytea,
    headers json NOT NULL,
    published_at timestamp with time zone,
    published_partition integer,
    published_offset bigint,
    refused text
);


--
-- Name: COLUMN dead_letters.topic; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.dead_letters.topic IS 'where the record was first read';


--
-- Name: COLUMN dead_letters.headers; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.dead_letters.headers IS 'the original ones: [name, base64 of the value] each';


--
-- Name: COLUMN dead_letters.refused; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.dead_letters.refused IS 'why the broker refused it for good';


--
-- Name: dead_letters_seq_seq; Type: SEQUENCE; Schema: recorded; Owner: -
--

ALTER TABLE recorded.dead_letters ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME recorded.dead_letters_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: expected_items; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.expected_items (
    batch_id text NOT NULL COLLATE pg_catalog."C",
    item_id text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: item_results; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.item_results (
    version bigint NOT NULL,
    received_at timestamp with time zone NOT NULL,
    attempt integer NOT NULL,
    generation integer NOT NULL,
    batch_id text NOT NULL COLLATE pg_catalog."C",
    item_id text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL,
    effect text,
    duration_ms double precision,
    message text,
    error_code text,
    error_message text,
    stack_trace text,
    output json,
    metrics json,
    worker text,
    occurred_at timestamp with time zone,
    CONSTRAINT item_results_status_known CHECK ((status = ANY (ARRAY['succeeded'::text, 'partial'::text, 'failed'::text, 'skipped'::text, 'retrying'::text])))
);


--
-- Name: COLUMN item_results.version; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.item_results.version IS 'offset on the batch''s home partition';


--
-- Name: COLUMN item_results.received_at; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.item_results.received_at IS 'append time of the record';


--
-- Name: COLUMN item_results.occurred_at; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.item_results.occurred_at IS 'the upstream''s claim; shown, never decided by';


--
-- Name: late_results; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.late_results (
    version bigint NOT NULL,
    received_at timestamp with time zone NOT NULL,
    attempt integer NOT NULL,
    generation integer NOT NULL,
    batch_id text NOT NULL COLLATE pg_catalog."C",
    item_id text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL,
    effect text,
    duration_ms double precision,
    message text,
    error_code text,
    error_message text,
    stack_trace text,
    output json,
    metrics json,
    worker text,
    occurred_at timestamp with time zone,
    CONSTRAINT late_results_status_known CHECK ((status = ANY (ARRAY['succeeded'::text, 'partial'::text, 'failed'::text, 'skipped'::text, 'retrying'::text])))
);


--
-- Name: COLUMN late_results.version; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.late_results.version IS 'offset on the batch''s home partition';


--
-- Name: COLUMN late_results.received_at; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.late_results.received_at IS 'append time of the record';


--
-- Name: COLUMN late_results.occurred_at; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.late_results.occurred_at IS 'the upstream''s claim; shown, never decided by';


--
-- Name: logs; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.logs (
    topic text NOT NULL,
    partition_count integer NOT NULL,
    CONSTRAINT logs_partition_count_positive CHECK ((partition_count > 0))
);


--
-- Name: COLUMN logs.partition_count; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.logs.partition_count IS 'as of the first start: it fixes every batch''s home';


--
-- Name: outbox; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.outbox (
    id text NOT NULL COLLATE pg_catalog."C",
    seq bigint NOT NULL,
    channel text NOT NULL,
    batch_id text COLLATE pg_catalog."C",
    revision integer,
    value text,
    headers json,
    published_at timestamp with time zone,
    published_partition integer,
    published_offset bigint,
    refused text,
    CONSTRAINT outbox_channel_known CHECK ((channel = ANY (ARRAY['finalized'::text, 'summaries'::text, 'alerts'::text, 'requests'::text]))),
    CONSTRAINT outbox_unpublished_has_a_value CHECK (((value IS NOT NULL) OR (published_at IS NOT NULL)))
);


--
-- Name: COLUMN outbox.id; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.outbox.id IS 'the event''s deterministic ce_id';


--
-- Name: COLUMN outbox.channel; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.outbox.channel IS 'the topic, without prefix';


--
-- Name: COLUMN outbox.value; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.outbox.value IS 'the record''s value, JSON; null where only the topic knows it';


--
-- Name: COLUMN outbox.refused; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.outbox.refused IS 'why the broker refused it for good';


--
-- Name: outbox_seq_seq; Type: SEQUENCE; Schema: recorded; Owner: -
--

ALTER TABLE recorded.outbox ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME recorded.outbox_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: positions; Type: TABLE; Schema: recorded; Owner: -
--

CREATE TABLE recorded.positions (
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    last_offset bigint,
    last_timestamp bigint,
    last_checksum bigint,
    taken json DEFAULT '{}'::json NOT NULL
)
WITH (fillfactor='50');


--
-- Name: COLUMN positions.next_offset; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.positions.next_offset IS 'everything before it is applied (or, out, known)';


--
-- Name: COLUMN positions.last_offset; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.positions.last_offset IS 'the last record applied; with its time and checksum it proves the log';


--
-- Name: COLUMN positions.last_timestamp; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.positions.last_timestamp IS 'milliseconds since 1970';


--
-- Name: COLUMN positions.last_checksum; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.positions.last_checksum IS 'crc32 of key and value';


--
-- Name: COLUMN positions.taken; Type: COMMENT; Schema: recorded; Owner: -
--

COMMENT ON COLUMN recorded.positions.taken IS 'source partition -> highest original offset taken by forwarding';


--
-- Data for Name: alembic_version; Type: TABLE DATA; Schema: recorded; Owner: -
--

INSERT INTO recorded.alembic_version VALUES ('0001');


--
-- Data for Name: batches; Type: TABLE DATA; Schema: recorded; Owner: -
--

INSERT INTO recorded.batches VALUES ('batch-11-0002-a b', 0, 'finalized', 'failed', 'all_items_in', 1, 0, true, NULL, 2, 2, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, '{"tolerated_failure_count":0}', NULL, NULL, false, '2026-01-01 00:00:00.006+00', '2026-01-01 00:00:00.005+00', '2026-01-01 00:00:00.006+00', 46, '2026-01-01 00:00:00.006+00', '2026-01-01 00:00:00.006+00', '2026-01-01 00:00:00.006+00', 48, NULL);
INSERT INTO recorded.batches VALUES ('batch-11-0004-заказ', 0, 'finalized', 'failed', 'all_items_in', 1, 0, true, 30, NULL, 0, 26, 2, 2, 0, 0, 4, 3, 1, 2, 0, 'Nightly 🚨 upstream said no 🚨 51', '{"tenant":"line one\nline two\ttabbed","run":516986,"tags":["a","é"]}', '{"tolerated_failure_count":1000,"tolerated_failure_percentage":5.0,"late_results":"record"}', NULL, NULL, false, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00', '2026-01-01 00:00:00.005+00', 39, '2026-01-01 00:00:00.005+00', '2026-01-01 00:00:00.005+00', '2026-01-01 00:00:00.005+00', 40, NULL);
INSERT INTO recorded.batches VALUES ('open', 0, 'processing', NULL, NULL, 0, 0, true, 3, NULL, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, false, '2026-01-01 00:00:00.008+00', '2026-01-01 00:00:00.008+00', '2026-01-01 00:00:00.008+00', 55, '2026-01-01 00:00:00.008+00', NULL, NULL, NULL, NULL);
INSERT INTO recorded.batches VALUES ('batch-11-0000', 0, 'finalized', 'completed', 'all_items_in', 1, 0, true, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, NULL, NULL, NULL, NULL, NULL, false, '2026-01-01 00:00:00.006+00', NULL, NULL, NULL, NULL, NULL, '2026-01-01 00:00:00.007+00', 49, NULL);
INSERT INTO recorded.batches VALUES ('batch-11-0001-Übersicht', 0, 'finalized', 'completed', 'all_items_in', 1, 0, true, 1, NULL, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 'Nightly took the slow path 72', NULL, NULL, NULL, NULL, false, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00.006+00', '2026-01-01 00:00:00.006+00', 44, '2026-01-01 00:00:00.006+00', '2026-01-01 00:00:00.006+00', '2026-01-01 00:00:00.006+00', 44, NULL);
INSERT INTO recorded.batches VALUES ('batch-11-0003-a b', 0, 'finalized', 'failed', 'all_items_in', 1, 0, true, 5, NULL, 0, 4, 0, 1, 0, 0, 1, 0, 0, 0, 1, 'Nightly  84', NULL, '{"tolerated_failure_percentage":12.5}', '2099-12-31 23:59:59+00', NULL, false, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00', '2026-01-01 00:00:00.006+00', 43, '2026-01-01 00:00:00.006+00', '2026-01-01 00:00:00.006+00', '2026-01-01 00:00:00.006+00', 43, NULL);


--
-- Data for Name: dead_letters; Type: TABLE DATA; Schema: recorded; Owner: -
--



--
-- Data for Name: expected_items; Type: TABLE DATA; Schema: recorded; Owner: -
--

INSERT INTO recorded.expected_items VALUES ('batch-11-0002-a b', ' 00001');
INSERT INTO recorded.expected_items VALUES ('batch-11-0002-a b', '00000');


--
-- Data for Name: item_results; Type: TABLE DATA; Schema: recorded; Owner: -
--

INSERT INTO recorded.item_results VALUES (1, '2026-01-01 00:00:00+00', 1, 0, 'batch-11-0003-a b', '00000', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, '[]', '{"bytes":68868737,"größe":0.95}', 'worker-2', NULL);
INSERT INTO recorded.item_results VALUES (4, '2026-01-01 00:00:00+00', 1, 0, 'batch-11-0003-a b', '00001', 'succeeded', 'created', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (2, '2026-01-01 00:00:00+00', 1, 0, 'batch-11-0003-a b', 'q"00002', 'failed', NULL, NULL, NULL, 'E-42', 'took the slow path #645', NULL, '""', '{"bytes":507020352,"größe":0.5348}', NULL, NULL);
INSERT INTO recorded.item_results VALUES (8, '2026-01-01 00:00:00.001+00', 1, 0, 'batch-11-0004-заказ', '00000', 'failed', NULL, 3578, NULL, NULL, 'a "quoted" \ path C:\u0000 #209', NULL, NULL, NULL, 'pod/ab12🐧', NULL);
INSERT INTO recorded.item_results VALUES (11, '2026-01-01 00:00:00.001+00', 1, 0, 'batch-11-0004-заказ', '00005', 'partial', NULL, 4076, NULL, 'TIMEOUT', ' #23', NULL, NULL, '{"bytes":209858645,"größe":0.648}', NULL, NULL);
INSERT INTO recorded.item_results VALUES (16, '2026-01-01 00:00:00.002+00', 1, 0, 'batch-11-0004-заказ', '00022', 'succeeded', NULL, 2602, NULL, NULL, NULL, NULL, 'true', NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (15, '2026-01-01 00:00:00.002+00', 2, 0, 'batch-11-0004-заказ', '00027', 'succeeded', NULL, 26.902, NULL, NULL, NULL, NULL, NULL, NULL, 'работник-3', NULL);
INSERT INTO recorded.item_results VALUES (13, '2026-01-01 00:00:00.001+00', 1, 0, 'batch-11-0004-заказ', '00029', 'succeeded', 'updated', NULL, 'größer als erlaubt', NULL, NULL, NULL, NULL, NULL, 'pod/ab12🐧', NULL);
INSERT INTO recorded.item_results VALUES (7, '2026-01-01 00:00:00.001+00', 1, 0, 'batch-11-0004-заказ', 'Z00002', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{"bytes":66513030,"größe":0.1345}', 'worker-1', '2026-01-03 04:11:13.12053+00');
INSERT INTO recorded.item_results VALUES (9, '2026-01-01 00:00:00.001+00', 1, 0, 'batch-11-0004-заказ', 'Z00019', 'succeeded', 'updated', 22.854, NULL, NULL, NULL, NULL, '[]', NULL, NULL, '2026-01-02 00:00:30.64473+00');
INSERT INTO recorded.item_results VALUES (17, '2026-01-01 00:00:00.002+00', 1, 0, 'batch-11-0004-заказ', 'orders/00011', 'succeeded', NULL, 609, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (10, '2026-01-01 00:00:00.001+00', 1, 0, 'batch-11-0004-заказ', 'orders/00028', 'partial', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'работник-3', NULL);
INSERT INTO recorded.item_results VALUES (6, '2026-01-01 00:00:00+00', 1, 0, 'batch-11-0004-заказ', '項00026', 'succeeded', NULL, 2425, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (14, '2026-01-01 00:00:00.002+00', 1, 0, 'batch-11-0004-заказ', '😀00021', 'succeeded', NULL, 99.531, NULL, NULL, NULL, NULL, '"tx-0848a1e53a015797"', NULL, 'worker-2', NULL);
INSERT INTO recorded.item_results VALUES (18, '2026-01-01 00:00:00.002+00', 2, 0, 'batch-11-0004-заказ', '😀00025', 'succeeded', NULL, 310, NULL, NULL, NULL, NULL, '{"id":"tx-695325c2586f1a06","путь":{"ok":false}}', NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (26, '2026-01-01 00:00:00.003+00', 1, 0, 'batch-11-0004-заказ', ' 00001', 'succeeded', NULL, 219.796, '🚨 upstream said no 🚨', NULL, NULL, NULL, NULL, NULL, 'worker-1', '2026-01-06 06:38:37+00');
INSERT INTO recorded.item_results VALUES (39, '2026-01-01 00:00:00.005+00', 1, 0, 'batch-11-0004-заказ', '00004', 'failed', NULL, NULL, '不正な値です', 'NOT_FOUND', '🚨 upstream said no 🚨 #783', NULL, NULL, NULL, 'работник-3', NULL);
INSERT INTO recorded.item_results VALUES (22, '2026-01-01 00:00:00.003+00', 1, 0, 'batch-11-0004-заказ', '00006', 'succeeded', NULL, 369, NULL, NULL, NULL, NULL, NULL, NULL, 'worker-2', NULL);
INSERT INTO recorded.item_results VALUES (33, '2026-01-01 00:00:00.004+00', 1, 0, 'batch-11-0004-заказ', '00009', 'succeeded', NULL, 150.493, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (29, '2026-01-01 00:00:00.004+00', 1, 0, 'batch-11-0004-заказ', '00012', 'succeeded', NULL, 3784, NULL, NULL, NULL, NULL, NULL, '{"bytes":228986568,"größe":0.9107}', NULL, '2026-01-06 05:49:32+00');
INSERT INTO recorded.item_results VALUES (35, '2026-01-01 00:00:00.005+00', 1, 0, 'batch-11-0004-заказ', '00017', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'работник-3', NULL);
INSERT INTO recorded.item_results VALUES (24, '2026-01-01 00:00:00.003+00', 3, 0, 'batch-11-0004-заказ', '00020', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{"bytes":79827034,"größe":0.6871}', 'работник-3', NULL);
INSERT INTO recorded.item_results VALUES (27, '2026-01-01 00:00:00.003+00', 1, 0, 'batch-11-0004-заказ', 'Z00024', 'succeeded', NULL, 240.054, 'ok', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (37, '2026-01-01 00:00:00.005+00', 1, 0, 'batch-11-0004-заказ', 'a00013', 'succeeded', 'unchanged', 90.33, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (25, '2026-01-01 00:00:00.003+00', 1, 0, 'batch-11-0004-заказ', 'q"00003', 'succeeded', 'created', 44.561, NULL, NULL, NULL, NULL, '[]', NULL, 'worker-2', NULL);
INSERT INTO recorded.item_results VALUES (32, '2026-01-01 00:00:00.004+00', 1, 0, 'batch-11-0004-заказ', 'q"00018', 'succeeded', NULL, 89, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (23, '2026-01-01 00:00:00.003+00', 1, 0, 'batch-11-0004-заказ', '項00010', 'succeeded', 'created', 389.816, 'счёт не найден', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (21, '2026-01-01 00:00:00.003+00', 1, 0, 'batch-11-0004-заказ', 'ﬀ00008', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (30, '2026-01-01 00:00:00.004+00', 1, 0, 'batch-11-0004-заказ', 'ﬀ00016', 'succeeded', 'updated', 1469, NULL, NULL, NULL, NULL, 'true', NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (36, '2026-01-01 00:00:00.005+00', 1, 0, 'batch-11-0004-заказ', 'ﬀ00023', 'succeeded', 'created', 1161, 'line one
line two	tabbed', NULL, NULL, NULL, NULL, NULL, NULL, '2026-01-07 21:15:29+00');
INSERT INTO recorded.item_results VALUES (38, '2026-01-01 00:00:00.005+00', 1, 0, 'batch-11-0004-заказ', '😀00007', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{"bytes":338383335,"größe":0.7484}', 'worker-2', NULL);
INSERT INTO recorded.item_results VALUES (34, '2026-01-01 00:00:00.004+00', 1, 0, 'batch-11-0004-заказ', '😀00014', 'succeeded', 'created', 4428, NULL, NULL, NULL, NULL, NULL, NULL, 'worker-2', '2026-01-12 02:04:48+00');
INSERT INTO recorded.item_results VALUES (20, '2026-01-01 00:00:00.002+00', 2, 0, 'batch-11-0004-заказ', '00015', 'succeeded', NULL, 3096, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (44, '2026-01-01 00:00:00.006+00', 1, 0, 'batch-11-0001-Übersicht', '00000', 'succeeded', 'updated', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (45, '2026-01-01 00:00:00.006+00', 1, 0, 'batch-11-0002-a b', ' 00001', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (46, '2026-01-01 00:00:00.006+00', 2, 0, 'batch-11-0002-a b', '00000', 'failed', NULL, 132.015, NULL, NULL, 'ok #486', NULL, '"tx-13284c79a2dcfd24"', NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (42, '2026-01-01 00:00:00.006+00', 1, 0, 'batch-11-0003-a b', '00003', 'succeeded', NULL, 52.845, 'ok', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (43, '2026-01-01 00:00:00.006+00', 1, 0, 'batch-11-0003-a b', 'orders/00004', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'pod/ab12🐧', NULL);
INSERT INTO recorded.item_results VALUES (53, '2026-01-01 00:00:00.008+00', 1, 0, 'open', 'x', 'failed', NULL, NULL, NULL, NULL, 'm', NULL, NULL, NULL, NULL, NULL);
INSERT INTO recorded.item_results VALUES (55, '2026-01-01 00:00:00.008+00', 1, 0, 'open', 'y', 'retrying', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);


--
-- Data for Name: late_results; Type: TABLE DATA; Schema: recorded; Owner: -
--

INSERT INTO recorded.late_results VALUES (50, '2026-01-01 00:00:00.007+00', 1, 0, 'batch-11-0000', 'nobody', 'succeeded', 'unchanged', 4094, NULL, NULL, NULL, NULL, NULL, NULL, 'worker-1', NULL);
INSERT INTO recorded.late_results VALUES (51, '2026-01-01 00:00:00.007+00', 1, 0, 'batch-11-0001-Übersicht', '00000', 'failed', NULL, 2694, NULL, NULL, NULL, NULL, NULL, '{"bytes":395861987,"größe":0.3717}', NULL, NULL);
INSERT INTO recorded.late_results VALUES (52, '2026-01-01 00:00:00.007+00', 5, 0, 'batch-11-0003-a b', 'orders/00004', 'succeeded', 'unchanged', 524, NULL, NULL, NULL, NULL, NULL, NULL, 'worker-1', '2026-01-09 05:58:54+00');


--
-- Data for Name: logs; Type: TABLE DATA; Schema: recorded; Owner: -
--



--
-- Data for Name: outbox; Type: TABLE DATA; Schema: recorded; Owner: -
--

INSERT INTO recorded.outbox OVERRIDING SYSTEM VALUE VALUES ('batch.finalized/batch-11-0004-заказ/1', 1, 'finalized', 'batch-11-0004-заказ', 1, '{"batch_id":"batch-11-0004-заказ","revision":1,"supersedes":null,"outcome":"failed","finalized_by":"all_items_in","item_counts":{"total":30,"succeeded":26,"partial":2,"failed":2,"skipped":0,"missing":0,"unexpected":0},"write_counts":{"created":4,"updated":3,"unchanged":1},"error_summary":"2 of 30 failed","failed_item_ids":["00000","00004"],"missing_item_ids":[],"name":"Nightly 🚨 upstream said no 🚨 51","metadata":{"tenant":"line one\nline two\ttabbed","run":516986,"tags":["a","é"]},"retry_of":null,"opened_at":"2026-01-01T00:00:00.000Z","first_result_at":"2026-01-01T00:00:00.000Z","finalized_at":"2026-01-01T00:00:00.005Z","duration_ms":5,"as_of":{"topic":"rollcall.events","partition":0,"offset":40}}', '{"ce_specversion": "1.0", "ce_id": "batch.finalized/batch-11-0004-\u0437\u0430\u043a\u0430\u0437/1", "ce_type": "rollcall.batch.finalized.v1", "ce_source": "/rollcall", "ce_time": "2026-01-01T00:00:00.005Z", "ce_subject": "batch-11-0004-\u0437\u0430\u043a\u0430\u0437", "content-type": "application/json"}', NULL, NULL, NULL, NULL);
INSERT INTO recorded.outbox OVERRIDING SYSTEM VALUE VALUES ('batch.finalized/batch-11-0003-a b/1', 2, 'finalized', 'batch-11-0003-a b', 1, '{"batch_id":"batch-11-0003-a b","revision":1,"supersedes":null,"outcome":"failed","finalized_by":"all_items_in","item_counts":{"total":5,"succeeded":4,"partial":0,"failed":1,"skipped":0,"missing":0,"unexpected":0},"write_counts":{"created":1,"updated":0,"unchanged":0},"error_summary":"1 of 5 failed","failed_item_ids":["q\"00002"],"missing_item_ids":[],"name":"Nightly  84","metadata":null,"retry_of":null,"opened_at":"2026-01-01T00:00:00.000Z","first_result_at":"2026-01-01T00:00:00.000Z","finalized_at":"2026-01-01T00:00:00.006Z","duration_ms":6,"as_of":{"topic":"rollcall.events","partition":0,"offset":43}}', '{"ce_specversion": "1.0", "ce_id": "batch.finalized/batch-11-0003-a b/1", "ce_type": "rollcall.batch.finalized.v1", "ce_source": "/rollcall", "ce_time": "2026-01-01T00:00:00.006Z", "ce_subject": "batch-11-0003-a b", "content-type": "application/json"}', NULL, NULL, NULL, NULL);
INSERT INTO recorded.outbox OVERRIDING SYSTEM VALUE VALUES ('batch.finalized/batch-11-0001-Übersicht/1', 3, 'finalized', 'batch-11-0001-Übersicht', 1, '{"batch_id":"batch-11-0001-Übersicht","revision":1,"supersedes":null,"outcome":"completed","finalized_by":"all_items_in","item_counts":{"total":1,"succeeded":1,"partial":0,"failed":0,"skipped":0,"missing":0,"unexpected":0},"write_counts":{"created":0,"updated":1,"unchanged":0},"error_summary":null,"failed_item_ids":[],"missing_item_ids":[],"name":"Nightly took the slow path 72","metadata":null,"retry_of":null,"opened_at":"2026-01-01T00:00:00.000Z","first_result_at":"2026-01-01T00:00:00.006Z","finalized_at":"2026-01-01T00:00:00.006Z","duration_ms":6,"as_of":{"topic":"rollcall.events","partition":0,"offset":44}}', '{"ce_specversion": "1.0", "ce_id": "batch.finalized/batch-11-0001-\u00dcbersicht/1", "ce_type": "rollcall.batch.finalized.v1", "ce_source": "/rollcall", "ce_time": "2026-01-01T00:00:00.006Z", "ce_subject": "batch-11-0001-\u00dcbersicht", "content-type": "application/json"}', NULL, NULL, NULL, NULL);
INSERT INTO recorded.outbox OVERRIDING SYSTEM VALUE VALUES ('batch.finalized/batch-11-0002-a b/1', 4, 'finalized', 'batch-11-0002-a b', 1, '{"batch_id":"batch-11-0002-a b","revision":1,"supersedes":null,"outcome":"failed","finalized_by":"all_items_in","item_counts":{"total":2,"succeeded":1,"partial":0,"failed":1,"skipped":0,"missing":0,"unexpected":0},"write_counts":{"created":0,"updated":0,"unchanged":0},"error_summary":"1 of 2 failed","failed_item_ids":["00000"],"missing_item_ids":[],"name":null,"metadata":null,"retry_of":null,"opened_at":"2026-01-01T00:00:00.006Z","first_result_at":"2026-01-01T00:00:00.005Z","finalized_at":"2026-01-01T00:00:00.006Z","duration_ms":0,"as_of":{"topic":"rollcall.events","partition":0,"offset":48}}', '{"ce_specversion": "1.0", "ce_id": "batch.finalized/batch-11-0002-a b/1", "ce_type": "rollcall.batch.finalized.v1", "ce_source": "/rollcall", "ce_time": "2026-01-01T00:00:00.006Z", "ce_subject": "batch-11-0002-a b", "content-type": "application/json"}', NULL, NULL, NULL, NULL);
INSERT INTO recorded.outbox OVERRIDING SYSTEM VALUE VALUES ('batch.finalized/batch-11-0000/1', 5, 'finalized', 'batch-11-0000', 1, '{"batch_id":"batch-11-0000","revision":1,"supersedes":null,"outcome":"completed","finalized_by":"all_items_in","item_counts":{"total":0,"succeeded":0,"partial":0,"failed":0,"skipped":0,"missing":0,"unexpected":0},"write_counts":{"created":0,"updated":0,"unchanged":0},"error_summary":null,"failed_item_ids":[],"missing_item_ids":[],"name":null,"metadata":null,"retry_of":null,"opened_at":"2026-01-01T00:00:00.006Z","first_result_at":null,"finalized_at":"2026-01-01T00:00:00.007Z","duration_ms":1,"as_of":{"topic":"rollcall.events","partition":0,"offset":49}}', '{"ce_specversion": "1.0", "ce_id": "batch.finalized/batch-11-0000/1", "ce_type": "rollcall.batch.finalized.v1", "ce_source": "/rollcall", "ce_time": "2026-01-01T00:00:00.007Z", "ce_subject": "batch-11-0000", "content-type": "application/json"}', NULL, NULL, NULL, NULL);


--
-- Data for Name: positions; Type: TABLE DATA; Schema: recorded; Owner: -
--

INSERT INTO recorded.positions VALUES ('rollcall.events', 0, 56, 55, 0, 0, '{}');


--
-- Name: dead_letters_seq_seq; Type: SEQUENCE SET; Schema: recorded; Owner: -
--

SELECT pg_catalog.setval('recorded.dead_letters_seq_seq', 1, false);


--
-- Name: outbox_seq_seq; Type: SEQUENCE SET; Schema: recorded; Owner: -
--

SELECT pg_catalog.setval('recorded.outbox_seq_seq', 5, true);


--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: batches batches_pkey; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.batches
    ADD CONSTRAINT batches_pkey PRIMARY KEY (batch_id);


--
-- Name: dead_letters dead_letters_pkey; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (topic, partition, record_offset);


--
-- Name: expected_items expected_items_pkey; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.expected_items
    ADD CONSTRAINT expected_items_pkey PRIMARY KEY (batch_id, item_id);


--
-- Name: item_results item_results_pkey; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.item_results
    ADD CONSTRAINT item_results_pkey PRIMARY KEY (batch_id, item_id);


--
-- Name: late_results late_results_pkey; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.late_results
    ADD CONSTRAINT late_results_pkey PRIMARY KEY (batch_id, item_id);


--
-- Name: logs logs_pkey; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.logs
    ADD CONSTRAINT logs_pkey PRIMARY KEY (topic);


--
-- Name: outbox outbox_pkey; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (id);


--
-- Name: positions positions_pkey; Type: CONSTRAINT; Schema: recorded; Owner: -
--

ALTER TABLE ONLY recorded.positions
    ADD CONSTRAINT positions_pkey PRIMARY KEY (topic, partition);


--
-- Name: batches_by_opening; Type: INDEX; Schema: recorded; Owner: -
--

CREATE INDEX batches_by_opening ON recorded.batches USING btree (COALESCE(opened_at, first_result_at, finalized_at) DESC NULLS LAST, batch_id DESC);


--
-- Name: dead_letters_by_batch; Type: INDEX; Schema: recorded; Owner: -
--

CREATE INDEX dead_letters_by_batch ON recorded.dead_letters USING btree (batch_id) WHERE (batch_id IS NOT NULL);


--
-- Name: dead_letters_unpublished; Type: INDEX; Schema: recorded; Owner: -
--

CREATE INDEX dead_letters_unpublished ON recorded.dead_letters USING btree (seq) WHERE ((published_at IS NULL) AND (refused IS NULL));


--
-- Name: item_results_failed; Type: INDEX; Schema: recorded; Owner: -
--

CREATE INDEX item_results_failed ON recorded.item_results USING btree (batch_id, item_id) WHERE (status = 'failed'::text);


--
-- Name: outbox_revisions; Type: INDEX; Schema: recorded; Owner: -
--

CREATE INDEX outbox_revisions ON recorded.outbox USING btree (batch_id, revision) WHERE (channel = 'finalized'::text);


--
-- Name: outbox_unpublished; Type: INDEX; Schema: recorded; Owner: -
--

CREATE INDEX outbox_unpublished ON recorded.outbox USING btree (seq) WHERE ((published_at IS NULL) AND (refused IS NULL));


--
-- PostgreSQL database dump complete
--


