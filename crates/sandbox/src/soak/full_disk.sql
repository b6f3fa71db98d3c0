-- A disk that is full when it is told so: Postgres' own answer, where no small disk can be mounted.
CREATE SCHEMA soak;
CREATE TABLE soak.disk (is_full boolean NOT NULL);
INSERT INTO soak.disk (is_full) VALUES (false);

CREATE FUNCTION soak.refuse_if_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT is_full FROM soak.disk) THEN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER refuse_if_full BEFORE INSERT ON public.objects FOR EACH ROW EXECUTE FUNCTION soak.refuse_if_full();
