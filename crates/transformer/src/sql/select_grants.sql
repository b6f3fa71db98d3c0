-- The statements that let a role run the transformer and nothing else. Its password is the operator's to give; on RDS its tokens
-- come from IAM.
SELECT format('CREATE ROLE %I LOGIN', $1::text) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)
UNION ALL
SELECT format('GRANT rds_iam TO %I', $1::text) WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_iam')
UNION ALL
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), $1::text)
UNION ALL
SELECT format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), $1::text)
UNION ALL
SELECT format('GRANT SELECT, UPDATE ON stream TO %I', $1::text)
UNION ALL
SELECT format('GRANT SELECT, INSERT ON objects, quarantined_records TO %I', $1::text)
UNION ALL
SELECT format('GRANT SELECT, INSERT, DELETE ON missing_rows TO %I', $1::text)
UNION ALL
SELECT format('GRANT SELECT, INSERT, UPDATE ON %I TO %I', $2::text, $1::text)
UNION ALL
SELECT format('GRANT DELETE ON %I TO %I', $2::text, $1::text) WHERE $3
