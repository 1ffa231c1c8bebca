// The JDBC driver: server-side statements from the first use on, batches, fetch sizes, cancels.
import java.sql.*;
import java.util.Properties;

public class Jdbc {
    public static void main(String[] arguments) throws Exception {
        var environment = System.getenv();
        var url = "jdbc:postgresql://" + environment.get("PGHOST") + ":" + environment.get("PGPORT") + "/" + environment.get("PGDATABASE");
        var properties = new Properties();
        properties.put("user", environment.get("PGUSER"));
        properties.put("password", environment.get("PGPASSWORD"));
        properties.put("prepareThreshold", "1");
        properties.put("sslmode", "require");
        int rounds = Integer.parseInt(environment.get("ROUNDS"));
        try (var connection = DriverManager.getConnection(url, properties)) {
            connection.createStatement().execute("CREATE TABLE IF NOT EXISTS jdbc (a int, b text)");
            var select = connection.prepareStatement("SELECT ?::int, ?::text");
            for (int turn = 0; turn < rounds; turn++) {
                select.setInt(1, turn);
                select.setString(2, "n" + turn);
                var row = select.executeQuery();
                check(row.next() && row.getInt(1) == turn && row.getString(2).equals("n" + turn));
                connection.setAutoCommit(false);
                var insert = connection.prepareStatement("INSERT INTO jdbc VALUES (?, ?)");
                for (int n = 0; n < 300; n++) {
                    insert.setInt(1, n);
                    insert.setString(2, "x".repeat(n));
                    insert.addBatch();
                }
                check(insert.executeBatch().length == 300);
                var cursor = connection.prepareStatement("SELECT a FROM jdbc");
                cursor.setFetchSize(50);
                int rows = 0;
                for (var some = cursor.executeQuery(); some.next(); rows++) { }
                check(rows == 300);
                var savepoint = connection.setSavepoint();
                check(state(() -> connection.createStatement().execute("SELECT 1/0")).equals("22012"));
                connection.rollback(savepoint);
                connection.rollback();
                connection.setAutoCommit(true);
            }
            var slow = connection.createStatement();
            var canceller = new Thread(() -> {
                try { Thread.sleep(200); slow.cancel(); } catch (Exception error) { throw new RuntimeException(error); }
            });
            canceller.start();
            check(state(() -> slow.execute("SELECT pg_sleep(20)")).equals("57014"));
            canceller.join();
            zones(url, properties);
            System.out.println("JDBC " + connection.getMetaData().getDriverVersion() + ": ok");
        }
    }

    /** Two virtual machines in two time zones, as the driver tells the server: what they share may not mean the other's time. */
    static void zones(String url, Properties properties) throws Exception {
        var home = java.util.TimeZone.getDefault();
        var connections = new java.util.LinkedHashMap<String, Connection>();
        for (var zone : new String[] {"Asia/Tokyo", "America/New_York"}) {
            java.util.TimeZone.setDefault(java.util.TimeZone.getTimeZone(zone));
            connections.put(zone, DriverManager.getConnection(url, properties));
        }
        for (int turn = 0; turn < 20; turn++) {
            for (var entry : connections.entrySet()) {
                java.util.TimeZone.setDefault(java.util.TimeZone.getTimeZone(entry.getKey()));
                var select = entry.getValue().prepareStatement("SELECT extract(epoch FROM '2024-01-01 00:00'::timestamptz), '2024-01-01 00:00'::timestamptz");
                var row = select.executeQuery();
                var there = java.time.LocalDateTime.parse("2024-01-01T00:00").atZone(java.time.ZoneId.of(entry.getKey())).toInstant();
                check(row.next() && row.getLong(1) == there.getEpochSecond() && row.getTimestamp(2).toInstant().equals(there));
                select.close();
            }
        }
        java.util.TimeZone.setDefault(home);
        for (var connection : connections.values()) connection.close();
    }

    interface Action { void run() throws SQLException; }

    static String state(Action action) {
        try { action.run(); return "no error"; } catch (SQLException error) { return error.getSQLState(); }
    }

    static void check(boolean holds) {
        if (!holds) throw new AssertionError();
    }
}
